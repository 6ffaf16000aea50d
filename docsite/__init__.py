"""How the documentation's site is made: its build, its pictures and its page of commands."""
