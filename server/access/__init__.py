"""Who may call: API keys, quotas, TLS files, and when a server may run open. Knows no protocol and no adapters."""
