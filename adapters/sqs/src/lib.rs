//! SQS source and publisher for onceward: visibility kept alive, FIFO groups, batched deletes.
