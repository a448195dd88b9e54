"""The fault campaign: casemate under kills, full disks, damaged files, other clocks, rivals and many visitors.

`python -m benchmarks.campaign` runs it in the repository's folder, as `make campaign` does; see README.md.
"""
