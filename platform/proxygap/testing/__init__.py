"""Public fakes and conformance suites, one per protocol."""
