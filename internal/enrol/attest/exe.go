package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxDigests bounds the cache of executables' digests.
	maxDigests = 512
	// maxExecutable is the longest executable that is hashed, in bytes.
	maxExecutable = 512 << 20
	// settle is how long a file must not have changed for its digest to be
	// kept: two changes within one tick of the file system's clock look alike.
	settle = 2 * time.Second
	// deleted is what the kernel appends to the path of a file that is no
	// longer there (proc_pid_exe(5)).
	deleted = " (deleted)"
)

// An image is one state of one file: it changes whenever the file's content may.
type image struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // nanoseconds
}

func imageOf(s *unix.Stat_t) image {
	return image{uint64(s.Dev), s.Ino, s.Size, s.Mtim.Nano(), s.Ctim.Nano()} //nolint:unconvert // Dev is 32 bits wide on some architectures
}

// readImage fills Exe and image; it returns nil where they may not be read.
func (w *Workload) readImage() *image {
	running, err := lookAt(w.PID)
	if err != nil {
		w.blind("exe", reason(err))
		w.blind("sha256", reason(err))
		return nil
	}
	w.image = running
	path, err := os.Readlink(procPath(w.PID, "exe"))
	if err != nil {
		w.blind("exe", reason(err))
		return &running
	}
	if strings.HasSuffix(path, deleted) {
		w.blind("exe", "its file was deleted or replaced after it started; restart the process")
		return &running
	}
	// The path is one in the process's own view of the file system, which
	// anybody can arrange as they like in a mount namespace. It counts only
	// where it leads to the running file in ours.
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		w.blind("exe", fmt.Sprintf("this agent cannot look at %q: %v", path, err))
	} else if uint64(s.Dev) != running.dev || s.Ino != running.ino { //nolint:unconvert // as above
		w.blind("exe", fmt.Sprintf("%q is another file in this agent's view of the file system", path))
	} else {
		w.Exe = path
	}
	return &running
}

// lookAt is the image that a process runs, through /proc/PID/exe, which leads to
// the file itself whatever became of its path.
func lookAt(pid int) (image, error) {
	var s unix.Stat_t
	if err := unix.Stat(procPath(pid, "exe"), &s); err != nil {
		return image{}, err
	}
	return imageOf(&s), nil
}

// digests caches the SHA-256 of executables by image.
type digests struct {
	mu   sync.Mutex // guards sums
	sums map[image]string
	one  sync.Mutex // held while hashing: strangers can make us busy on one core at most
}

func (d *digests) init() { d.sums = map[image]string{} }

func (d *digests) lookup(im image) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	sum, ok := d.sums[im]
	return sum, ok
}

// keep drops an arbitrary other digest where the cache is full.
func (d *digests) keep(im image, sum string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.sums) >= maxDigests {
		for other := range d.sums {
			delete(d.sums, other)
			break
		}
	}
	d.sums[im] = sum
}

// digest is the SHA-256 of the executable that was attested; an error if the
// process runs another one by now.
func (d *digests) digest(w *Workload) (string, error) {
	d.one.Lock()
	defer d.one.Unlock()
	if sum, ok := d.lookup(w.image); ok {
		return sum, nil
	}
	f, err := os.Open(procPath(w.PID, "exe"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := sameImage(f, w.image); err != nil {
		return "", err
	}
	if w.image.size > maxExecutable {
		return "", fmt.Errorf("the executable is longer than %d MiB", maxExecutable>>20)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxExecutable)); err != nil {
		return "", err
	}
	if err := sameImage(f, w.image); err != nil {
		return "", err
	}
	if !w.fd.alive() { // else the number might be another's by now
		return "", errGone
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if w.a.clk.Now().Sub(time.Unix(0, w.image.ctime)) > settle {
		d.keep(w.image, sum)
	}
	return sum, nil
}

func sameImage(f *os.File, want image) error {
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		return err
	}
	if imageOf(&s) != want {
		return errors.New("the executable changed since the process was attested")
	}
	return nil
}
