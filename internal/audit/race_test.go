//go:build race

package audit_test

// racing says that the race detector is on, under which a sync.Pool forgets now and
// then what it was given.
const racing = true
