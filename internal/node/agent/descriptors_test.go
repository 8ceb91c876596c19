package agent

import "testing"

// The Workload API leaves seven eighths to the others, and has room enough for small
// hosts.
func TestWorkloadShare(t *testing.T) {
	t.Parallel()
	for _, limit := range []uint64{0, 512, 1024, 4096, 20000, 1 << 20, 1 << 40, 1<<64 - 1} {
		n := int(max(512, min(limit, 1<<31-1)))
		if share := workloadShare(limit); 2*share > n/8 || share < 32 {
			t.Errorf("of %d descriptors the Workload API has %d", limit, share)
		}
	}
}
