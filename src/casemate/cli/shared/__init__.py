"""Modules that several commands share: option types, model and images, output folders, progress, tables, Ctrl-C."""
