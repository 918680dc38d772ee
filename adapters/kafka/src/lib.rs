//! Kafka source and publisher for onceward: lanes, watermarks, rebalances, transactions.
