"""The REST surface: thin routes over submission, ledger and journal."""
