package dev

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/parleymesh/parley/internal/clock"
)

// A process is an application of the demo: a separate operating system process,
// started from an executable file of its own.
type process struct {
	AppConfig
	cmd   *exec.Cmd
	stdin io.WriteCloser
	errs  *tail

	mu      sync.Mutex // guards next and waiting
	next    int
	waiting map[int]chan answer
	done    chan struct{}
}

// AppEnv is the environment variable by which an application gets its AppConfig
// as JSON. It holds no secret.
const AppEnv = "PARLEY_DEV_APP"

// install puts the running executable into dir under each name, so that every
// application runs from a file of its own. A hard link does: what is attested is
// the path that was executed.
func install(self, dir string, names ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		tmp := path + ".new"
		if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Link(self, tmp); err != nil {
			if err := copyFile(self, tmp); err != nil {
				return fmt.Errorf("install %s: %w", path, err)
			}
		}
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
		// Renaming one link onto another link of the same file does nothing
		// and leaves both (rename(2)).
		if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if errors.Is(err, os.ErrNotExist) {
		// --fresh took it away: it was started from the directory's own bin.
		in, err = os.Open("/proc/self/exe")
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// spawn starts an application and waits until it is ready.
func spawn(ctx context.Context, bin string, cfg AppConfig, env []string) (*process, error) {
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	p := &process{AppConfig: cfg, waiting: map[int]chan answer{}, done: make(chan struct{}), errs: &tail{}}
	p.cmd = exec.Command(filepath.Join(bin, cfg.Name), "dev", "app", cfg.Name)
	p.cmd.Env = append(append([]string{}, env...), AppEnv+"="+string(text))
	p.cmd.Stderr = p.errs
	// An interrupt at the terminal is for us: we end the applications in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	ready := p.expect(0)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cfg.Name, err)
	}
	go p.read(stdout)
	select {
	case <-ready:
		return p, nil
	case <-p.done:
		return nil, fmt.Errorf("%s ended at once: %s", cfg.Name, p.errs.text())
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("%s did not get ready: %w", cfg.Name, ctx.Err()), p.kill())
	}
}

// read hands answers to those who wait for them, until the process ends.
func (p *process) read(r io.Reader) {
	defer close(p.done)
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var a answer
		if json.Unmarshal(lines.Bytes(), &a) != nil {
			continue
		}
		p.mu.Lock()
		if ch, ok := p.waiting[a.ID]; ok {
			ch <- a
			delete(p.waiting, a.ID)
		}
		p.mu.Unlock()
	}
	_ = p.cmd.Wait() // how it ended does not matter: it was told to
}

func (p *process) expect(id int) <-chan answer {
	ch := make(chan answer, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting[id] = ch
	return ch
}

// ask has the application make a call and returns what it saw.
func (p *process) ask(ctx context.Context, q ask) answer {
	p.mu.Lock()
	p.next++
	q.ID = p.next
	p.mu.Unlock()
	ch := p.expect(q.ID)
	line, err := json.Marshal(q)
	if err == nil {
		_, err = p.stdin.Write(append(line, '\n'))
	}
	if err != nil {
		return answer{Error: fmt.Sprintf("%s cannot be asked: %v", p.Name, err)}
	}
	select {
	case a := <-ch:
		return a
	case <-p.done:
		return answer{Error: p.Name + " has ended"}
	case <-ctx.Done():
		return answer{Error: p.Name + " did not answer in time"}
	}
}

// stop ends the process: its input closes, and it is killed where that does not do.
func (p *process) stop(ctx context.Context, clk clock.Clock) error {
	p.stdin.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := make(chan struct{})
	go func() {
		if clk.Sleep(ctx, 2*time.Second) == nil {
			close(late)
		}
	}()
	select {
	case <-p.done:
		return nil
	case <-late:
	case <-ctx.Done():
	}
	return p.kill()
}

func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// tail keeps the last bytes that were written to it.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if n := len(t.buf) - 2048; n > 0 {
		t.buf = t.buf[n:]
	}
	return len(b), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf))
}
