"""The command line of gdkd-cache: one module a command; torch is imported only when a command runs."""
