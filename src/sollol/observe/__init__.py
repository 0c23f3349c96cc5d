"""Events and counters for readers outside the scheduler: journal, totals."""
