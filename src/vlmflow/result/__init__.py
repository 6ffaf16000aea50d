"""What was measured on one answer: its arrays, tables, maps on pixels and files."""
