"""Commands of the study, which `casemate` finds by the entry points `casemate.commands`."""
