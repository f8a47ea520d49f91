//go:build race

package ipam

// slowness is how much less to explore when data races are watched for.
const slowness = 10
