"""Many callers, one pipeline: a bounded queue, a few workers, deadlines, streams, and an asyncio face."""
