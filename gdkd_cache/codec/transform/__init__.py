"""The transform codec; README.md in this folder says what was tried, and what it gave."""
