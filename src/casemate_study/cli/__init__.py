"""The commands of the study, which casemate's command line finds by the entry points `casemate.commands`."""
