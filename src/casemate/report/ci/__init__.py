"""Results for continuous integration: JUnit XML (`junit`) and SARIF (`sarif`), from named checks (`checks`)."""
