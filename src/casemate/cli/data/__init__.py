"""List, fetch and look at the data sets.

Examples:
  casemate data list
  casemate data fetch
  casemate data show --out samples.png
"""
