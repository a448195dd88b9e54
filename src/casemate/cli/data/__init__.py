"""List, download and draw the data sets.

Examples:
  casemate data list
  casemate data fetch
  casemate data show --out samples.png
"""
