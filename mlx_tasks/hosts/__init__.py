"""The machines of one training: who they are, the processes on them, what these say to each other beside the ring."""
