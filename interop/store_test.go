package interop

import (
	"testing"

	storetest "github.com/parleymesh/parley/internal/store/xtest"
)

// TestStoreOnPostgres runs the whole suite of the store on a real PostgreSQL.
func TestStoreOnPostgres(t *testing.T) {
	c := newCluster(t)
	storetest.Run(t, c.place)
}
