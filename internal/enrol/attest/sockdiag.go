package attest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Sizes and numbers of sock_diag(7), linux/inet_diag.h and linux/netlink.h.
const (
	netlinkHeader = 16
	diagRequest   = 56 // struct inet_diag_req_v2
	diagReply     = 72 // struct inet_diag_msg
	replyLimit    = 8 << 10
	stateListen   = 10 // TCP_LISTEN of include/net/tcp_states.h
	noCookie      = 0xffffffff
)

// errNoSocket says that the kernel knows no such socket.
var errNoSocket = errors.New("no such socket on this machine")

// A socket is what the kernel says of one end of a TCP connection, or of a listener.
type socket struct {
	state    uint8
	src, dst netip.AddrPort // IPv4-mapped addresses as IPv4
	uid      int
	// inode is 0 for a socket that no process holds any more.
	inode uint32
}

// lookup asks the kernel for exactly one TCP socket by its two addresses. Where
// no connection has them, it answers with the listener that would take one.
func lookup(src, dst netip.AddrPort) (socket, error) {
	src, dst = plain(src), plain(dst)
	if src.Addr().Is4() != dst.Addr().Is4() {
		return socket{}, errNoSocket
	}
	if src.Addr().Zone() != "" || dst.Addr().Zone() != "" {
		return socket{}, errors.New("addresses with a zone cannot be attested")
	}
	reply, err := ask(request(src, dst))
	if err != nil {
		return socket{}, err
	}
	return parseReply(reply)
}

// ask sends one request to the kernel and returns its answer.
func ask(request []byte) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	defer unix.Close(fd)
	// The kernel answers within the call; the limit is for what cannot happen.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	buf := make([]byte, replyLimit)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sock_diag: %w", err)
		}
		if k, ok := from.(*unix.SockaddrNetlink); ok && k.Pid == 0 { // from the kernel
			return buf[:n], nil
		}
	}
}

// request is one inet_diag_req_v2 without NLM_F_DUMP: an exact look-up in the
// kernel's hash tables instead of a walk over all connections.
func request(src, dst netip.AddrPort) []byte {
	b := make([]byte, netlinkHeader+diagRequest)
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], uint32(len(b)))
	ne.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	ne.PutUint32(b[8:], 1) // sequence
	m := b[netlinkHeader:]
	m[0] = unix.AF_INET6
	if src.Addr().Is4() {
		m[0] = unix.AF_INET
	}
	m[1] = unix.IPPROTO_TCP
	ne.PutUint32(m[4:], 0xffffffff) // every state
	binary.BigEndian.PutUint16(m[8:], src.Port())
	binary.BigEndian.PutUint16(m[10:], dst.Port())
	copy(m[12:28], src.Addr().AsSlice())
	copy(m[28:44], dst.Addr().AsSlice())
	ne.PutUint32(m[48:], noCookie)
	ne.PutUint32(m[52:], noCookie)
	return b
}

// payload is what the first netlink message of b answers.
func payload(b []byte, least int) ([]byte, error) {
	ne := binary.NativeEndian
	if len(b) < netlinkHeader {
		return nil, errors.New("sock_diag: short reply")
	}
	size, kind := ne.Uint32(b), ne.Uint16(b[4:])
	if size < netlinkHeader || uint64(size) > uint64(len(b)) {
		return nil, errors.New("sock_diag: malformed reply")
	}
	m := b[netlinkHeader:size]
	switch {
	case kind == unix.NLMSG_ERROR && len(m) >= 4:
		errno := unix.Errno(-int32(ne.Uint32(m)))
		if errno == unix.ENOENT {
			return nil, errNoSocket
		}
		return nil, fmt.Errorf("sock_diag: %w", errno)
	case kind != unix.SOCK_DIAG_BY_FAMILY || len(m) < least:
		return nil, errors.New("sock_diag: unexpected reply")
	}
	return m, nil
}

// parseReply reads a reply about a TCP socket.
func parseReply(b []byte) (socket, error) {
	m, err := payload(b, diagReply)
	if err != nil {
		return socket{}, err
	}
	ne := binary.NativeEndian
	s := socket{state: m[1], uid: int(ne.Uint32(m[64:])), inode: ne.Uint32(m[68:])}
	switch m[0] {
	case unix.AF_INET:
		s.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(m[8:12])), 0)
		s.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(m[24:28])), 0)
	case unix.AF_INET6:
		s.src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(m[8:24])).Unmap(), 0)
		s.dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(m[24:40])).Unmap(), 0)
	default:
		return socket{}, errors.New("sock_diag: unexpected address family")
	}
	s.src = netip.AddrPortFrom(s.src.Addr(), binary.BigEndian.Uint16(m[4:]))
	s.dst = netip.AddrPortFrom(s.dst.Addr(), binary.BigEndian.Uint16(m[6:]))
	return s, nil
}

// plain writes an IPv4-mapped address as the IPv4 address that it is; the kernel
// keeps such connections among the IPv4 ones whatever socket made them.
func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
