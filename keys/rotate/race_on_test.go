//go:build race

package rotate

// slowness is how much less to explore when data races are watched for.
const slowness = 10
