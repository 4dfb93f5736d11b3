"""Sections of the report, one file a claim: results become words and figures."""
