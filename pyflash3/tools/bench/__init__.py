"""`python -m pyflash3 bench`: its options, records, tables and charts. scripts/benchlib measures."""
