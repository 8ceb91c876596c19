package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fault"
	"golang.org/x/sys/unix"
)

// A segment file is a header of three pages and records, integers in the machine's
// byte order. The header:
//
//	   0  magic, 8 bytes
//	   8  format version, 4 bytes
//	  12  length of the log's name, 4 bytes
//	  16  index of the first record, 8 bytes
//	  24  the log's name, 128 bytes
//	 508  CRC-32C of bytes 0 to 507
//	 512  checked count: records that are sealed and on the disk
//	 520  checked count: events lost since the last gap event
//	 528  boot id while the log is open, 16 bytes
//	 544  the right edge of the tree at the first record: one more than the number
//	      of its hashes, and the CRC-32C of these; 0 until a record is sealed
//	 576  the hashes of the edge, 32 bytes each
//	4096  a signed checkpoint, and
//	8192  another one, of which the newest counts; checkpoint.go has both
//
// A checked count is a number of 32 bits and its CRC-32C, stored at once. Bytes
// from 512 on change while the segment is in use. record.go has the records.
const (
	magic      = "PARLEYLG"
	version    = 2
	headerSize = 3 * page
	page       = 4096

	offVersion = 8
	offNameLen = 12
	offFirst   = 16
	offName    = 24
	maxName    = audit.MaxLogName
	offSum     = 508
	offSealed  = 512
	offLost    = 520
	offBoot    = 528
	offEdge    = 544
	offHashes  = 576
	offNotes   = page

	spareName   = "spare"
	reserveName = "reserve"
	lockName    = "lock"
	suffix      = ".seg"
)

var (
	order      = binary.NativeEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// A segment is one file of the log. data is its mapping while it is active or
// not yet sealed, and nil after that.
type segment struct {
	path  string
	first uint64
	data  []byte
	// reserve says that it is for what must be recorded on a full disk too.
	reserve bool

	end int    // offset behind the last published record; guarded by Spool.mu
	ill defect // what makes it useless, guarded by Spool.mu

	// For the sealer alone.
	sealOff  int // offset behind the last sealed record
	readied  int // up to where the pages are mapped
	sealNext uint64
	durable  bool         // its name is on the disk
	edge     []audit.Hash // of the tree at first; unknown where edged is false
	edged    bool

	// What the watchdog compares: the file that was opened, and its size. file is
	// closed for all but the newest segments.
	file *os.File
	info os.FileInfo
}

// segmentName sorts by first index.
func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, suffix) }

// create makes a file of size zero bytes, reserved and mapped.
func (s *Spool) create(name string, size int64) (*segment, error) {
	path := filepath.Join(s.cfg.Dir, name)
	// Not what lies there under that name: it may be of somebody else, or mapped.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, s.noSegment(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, s.noSegment(err)
	}
	err = s.disk.allocate(f, size)
	g := &segment{path: path}
	if err == nil {
		err = g.open(f)
	}
	if err == nil && int64(len(g.data)) != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		g.drop()
		f.Close()
		os.Remove(path)
		return nil, s.noSegment(err)
	}
	return g, nil
}

// open maps f, which is then the segment's.
func (g *segment) open(f *os.File) (err error) {
	if g.data, err = mapFile(f, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return err
	}
	if g.info, err = f.Stat(); err != nil {
		return err
	}
	g.file = f
	return nil
}

// noSegment is why there is no new segment.
func (s *Spool) noSegment(err error) error {
	if isFull(err) {
		return fault.Wrap(err, fault.LogFull, "make room on the file system of "+s.cfg.Dir+"; recording goes on by itself",
			"no space left for the audit log in %s", s.cfg.Dir)
	}
	return unusable(err, s.cfg.Dir)
}

// begin writes the header that makes a prepared file a segment of the log.
func (s *Spool) begin(g *segment, first uint64) {
	g.first, g.end, g.sealOff, g.sealNext = first, headerSize, headerSize, first
	h := g.data[:headerSize]
	copy(h, magic)
	order.PutUint32(h[offVersion:], version)
	order.PutUint32(h[offNameLen:], uint32(len(s.name)))
	order.PutUint64(h[offFirst:], first)
	copy(h[offName:], s.name)
	order.PutUint32(h[offSum:], crc32.Checksum(h[:offSum], castagnoli))
	copy(h[offBoot:], s.boot[:])
}

// header is what the unchanging part of a header says.
type header struct {
	log   string
	first uint64
}

// errHeader says that the file does not begin with a whole header.
var errHeader = errors.New("the header is damaged")

func readHeader(data []byte) (header, error) {
	if len(data) < headerSize || string(data[:len(magic)]) != magic ||
		order.Uint32(data[offSum:]) != crc32.Checksum(data[:offSum], castagnoli) {
		return header{}, errHeader
	}
	if v := order.Uint32(data[offVersion:]); v != version {
		return header{}, fmt.Errorf("format %d, this program reads %d", v, version)
	}
	n := order.Uint32(data[offNameLen:])
	if n == 0 || n > maxName {
		return header{}, errHeader
	}
	return header{log: string(data[offName : offName+n]), first: order.Uint64(data[offFirst:])}, nil
}

// checked packs a count with its sum; 0 stays 0.
func checked(n uint32) uint64 {
	if n == 0 {
		return 0
	}
	return uint64(n) | uint64(sum32(n))<<32
}

// unchecked is the count, or ok false where the sum is not its.
func unchecked(word uint64) (n uint32, ok bool) {
	n = uint32(word)
	return n, word == checked(n)
}

func sum32(n uint32) uint32 {
	var b [4]byte
	order.PutUint32(b[:], n)
	return crc32.Checksum(b[:], castagnoli)
}

// word is the eight aligned bytes at off, for loads and stores in one piece: a
// mapping begins at a page, and off is a multiple of 8.
func word(data []byte, off int) *atomic.Uint64 {
	_ = data[off+7]
	return (*atomic.Uint64)(unsafe.Pointer(&data[off]))
}

// openFile maps an existing file.
func openFile(path string, prot int) ([]byte, error) {
	flag := os.O_RDONLY
	if prot&unix.PROT_WRITE != 0 {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mapFile(f, prot)
}

// mapFile maps the whole of f; an empty file is an empty mapping.
func mapFile(f *os.File, prot int) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := info.Size()
	if size > 2*maxSegment {
		return nil, fmt.Errorf("%s has %d bytes, more than any segment", f.Name(), size)
	}
	if size == 0 {
		return nil, nil
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(size), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return data, nil
}

func (g *segment) unmap() { unmap(g.data); g.data = nil }

// drop lets go of the file, too.
func (g *segment) drop() {
	g.unmap()
	g.forget()
}

// forget closes the file: what happens to it from then on is found, and what was in
// it is lost with it.
func (g *segment) forget() {
	if g.file != nil {
		g.file.Close()
		g.file = nil
	}
}

// unmap cannot fail for what mapFile returned.
func unmap(data []byte) {
	if len(data) > 0 {
		_ = unix.Munmap(data)
	}
}

// writeZeros is allocation where the file system knows no other.
func writeZeros(f *os.File, size int64) error {
	zeros := make([]byte, 64<<10)
	for off := int64(0); off < size; {
		n, err := f.WriteAt(zeros[:min(size-off, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}
