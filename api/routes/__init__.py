"""The REST API: thin routes over submission, ledger and journal."""
