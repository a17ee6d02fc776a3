"""The platform's own records: SQLAlchemy models, their migrations and the engine behind them."""
