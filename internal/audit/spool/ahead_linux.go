package spool

import (
	"os"

	"golang.org/x/sys/unix"
)

// ahead is how much of a segment is made ready to be written before it is.
const ahead = 1 << 20

// ready has the kernel map the pages of g behind end, so that the request path does
// not wait for each at its first byte. A kernel that cannot (it is Linux 5.14 that
// began to), or a file that was cut short, is left as it is: the request path takes
// its faults then, or finds out.
func (g *segment) ready(end int) {
	if g.readied-end >= ahead/2 || g.readied >= len(g.data) {
		return
	}
	from := max(g.readied, end) &^ (os.Getpagesize() - 1)
	to := min(end+ahead, len(g.data))
	_ = unix.Madvise(g.data[from:to], unix.MADV_POPULATE_WRITE)
	g.readied = to
}
