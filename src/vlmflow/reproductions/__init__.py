"""Published tables, run again: the printed figure beside the measured one."""
