"""Families of attacks, what each case of them is, and how it is run and judged; `scripts/attack.py` runs them."""
