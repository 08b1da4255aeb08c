"""Published settings of trainings as TOML files, and what reads them."""
