"""One rank's executor: the model, the KV pool, the rows of the request table on the device, and the sampler."""
