"""What each analysis found, as sections of a report."""
