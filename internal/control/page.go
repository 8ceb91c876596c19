package control

import (
	"strconv"

	"github.com/parleymesh/parley/internal/fault"
)

// Pages of lists.
const (
	defaultPage = 100
	maxPage     = 1000
	// maxPageBytes ends a page of events early.
	maxPageBytes = 8 << 20
)

// pageSize is how many entries a page has.
func pageSize(limit int) (int, error) {
	switch {
	case limit < 0 || limit > maxPage:
		return 0, fault.New(fault.BadRequest, "", "limit is 0 to %d", maxPage)
	case limit == 0:
		return defaultPage, nil
	}
	return limit, nil
}

// position is the number in a cursor, 0 for none.
func position(cursor string) (int64, error) {
	if cursor == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(cursor, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != cursor {
		return 0, badCursor(cursor)
	}
	return n, nil
}

func badCursor(cursor string) error {
	return fault.New(fault.BadRequest, "begin without a cursor", "%q is no cursor of this list", clip(cursor))
}
