"""Commands of the study, found by the entry points `casemate.commands`."""
