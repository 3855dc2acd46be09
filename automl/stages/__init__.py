"""The stages between the data and the report, each a function of records.

They import the framework, so ``pipeline`` imports them only when the data is good.
"""
