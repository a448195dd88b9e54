"""List and clean the store of finished artifacts.

Examples:
  casemate store list
  casemate store clean --dry-run
"""
