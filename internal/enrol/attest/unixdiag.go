package attest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Sizes and numbers of linux/unix_diag.h.
const (
	unixRequest = 24 // struct unix_diag_req
	unixReply   = 16 // struct unix_diag_msg
	showPeer    = 4  // UDIAG_SHOW_PEER
	attrPeer    = 2  // UNIX_DIAG_PEER
)

// farEnd is the inode of the socket at the other end of conn.
func farEnd(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var s unix.Stat_t
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = unix.Fstat(int(fd), &s) }); err != nil {
		return 0, err
	}
	if inner != nil {
		return 0, inner
	}
	reply, err := ask(unixAsk(uint32(s.Ino)))
	if err != nil {
		return 0, err
	}
	peer, err := parseUnix(reply)
	if errors.Is(err, errNoSocket) {
		err = errors.New("the process is in another network namespace")
	}
	return peer, err
}

// unixAsk asks for one Unix socket and its peer.
func unixAsk(inode uint32) []byte {
	b := make([]byte, netlinkHeader+unixRequest)
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], uint32(len(b)))
	ne.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	ne.PutUint32(b[8:], 1) // sequence
	m := b[netlinkHeader:]
	m[0] = unix.AF_UNIX
	ne.PutUint32(m[4:], 0xffffffff) // every state
	ne.PutUint32(m[8:], inode)
	ne.PutUint32(m[12:], showPeer)
	ne.PutUint32(m[16:], noCookie)
	ne.PutUint32(m[20:], noCookie)
	return b
}

// parseUnix reads the inode of the peer out of a reply about a Unix socket.
func parseUnix(b []byte) (peer uint32, err error) {
	m, err := payload(b, unixReply)
	if err != nil {
		return 0, err
	}
	if m[0] != unix.AF_UNIX {
		return 0, errors.New("sock_diag: unexpected address family")
	}
	ne := binary.NativeEndian
	const header = 4 // struct nlattr: length, then type
	for m = m[unixReply:]; len(m) >= header; {
		size := int(ne.Uint16(m))
		if size < header || size > len(m) {
			return 0, errors.New("sock_diag: malformed reply")
		}
		if ne.Uint16(m[2:]) == attrPeer && size == header+4 {
			if peer = ne.Uint32(m[header:]); peer != 0 {
				return peer, nil
			}
		}
		m = m[min((size+3)&^3, len(m)):]
	}
	return 0, fmt.Errorf("%w: nobody is at the other end", errGone)
}
