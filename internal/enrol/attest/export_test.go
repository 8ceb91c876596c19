package attest

import (
	"net/netip"
	"time"
)

// What the tests of parsers and of old kernels reach.
var (
	ParseStatus = func(b []byte) (uid, gid int, groups []int, err error) {
		s, err := parseStatus(b)
		return s.uid, s.gid, s.groups, err
	}
	ParseStart  = func(b []byte) (uint64, error) { n, err := parseStart(b); return uint64(n), err }
	ParseUnit   = parseUnit
	SocketInode = socketInode
	EachName    = eachName
	MissingUnit = missingUnit
	ErrGone     = errGone
	ParseUnix   = parseUnix
	Uptime      = func() uint64 { n, _ := uptime(); return uint64(n) }
)

// ParseReply parses a sock_diag reply.
func ParseReply(b []byte) (state uint8, src, dst netip.AddrPort, uid int, inode uint32, err error) {
	s, err := parseReply(b)
	return s.state, s.src, s.dst, s.uid, s.inode, err
}

// OpenOlder is the way of kernels without SO_PEERPIDFD.
func OpenOlder(pid, uid int, began uint64) (int, error) { return openOlder(pid, uid, ticks(began)) }

// SetScanLimit bounds a look through one user's processes.
func (a *Attestor) SetScanLimit(d time.Duration) { a.scans.limit = d }
