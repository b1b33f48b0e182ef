"""From records to numbers: throughput, FLOPs, memory, stability. No input or output."""
