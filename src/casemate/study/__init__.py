"""The paper's experiments as data, the producers that compute them, and the runner."""
