"""The one engine: it trains lists of arms."""
