package attest

import (
	"bytes"
	"strings"
)

// parseUnit finds the system unit in /proc/PID/cgroup: that of the unified
// hierarchy, or else of systemd's own (cgroups(7)).
func parseUnit(b []byte) string {
	var own string
	for line := range bytes.SplitSeq(b, []byte("\n")) {
		if path, ok := strings.CutPrefix(string(line), "0::"); ok {
			if u := unitOf(path); u != "" {
				return u
			}
		} else if _, path, ok := strings.Cut(string(line), ":name=systemd:"); ok && own == "" {
			own = unitOf(path)
		}
	}
	return own
}

// unitOf is the first component of a control group's path that is no slice: what
// the system's own manager started. What stands below it was delegated, and
// whoever it was delegated to may call it anything: a user's own
// "orders.service" lies below user@1000.service and is user@1000.service here.
func unitOf(path string) string {
	for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		// systemd puts an underscore before names that the kernel reserves.
		name = strings.TrimPrefix(name, "_")
		switch {
		case strings.HasSuffix(name, ".slice") && len(name) > len(".slice"):
		case strings.HasSuffix(name, ".service") && len(name) > len(".service"),
			strings.HasSuffix(name, ".scope") && len(name) > len(".scope"):
			return name
		default:
			return ""
		}
	}
	return ""
}
