"""How the bundled models were trained; not part of the installed package."""
