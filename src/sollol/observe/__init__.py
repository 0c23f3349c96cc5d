"""Records for readers outside the scheduler: journal, history of requests, metrics, totals."""
