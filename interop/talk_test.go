package interop

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The kinds of connection that two services may have open.
var kinds = []string{"http2", "websocket", "tcp"}

// A word is what one who talks says: that a connection is open, when it was cut, or
// what came of a new one.
type word struct {
	Kind  string    `json:"kind"`
	Open  bool      `json:"open,omitempty"`
	Cut   time.Time `json:"cut,omitzero"`
	Tried string    `json:"tried,omitempty"`
}

var saying sync.Mutex // one word is one line

func say(w word) {
	saying.Lock()
	defer saying.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(w) // who does not listen has ended
}

// listenRole serves the three kinds: what comes is sent back, until it is cut.
func listenRole(web, lines string) int {
	l, err := net.Listen("tcp", lines)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				echo("tcp", c, c, func() {})
			}()
		}
	}()
	server := &http.Server{Addr: web, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols), Handler: http.HandlerFunc(held)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	fmt.Println(server.ListenAndServe())
	return 1
}

func held(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	switch {
	case r.URL.Path != "/hold":
		fmt.Fprintln(w, "served")
	case r.Header.Get("Upgrade") != "":
		c, buf, err := rc.Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		// RFC 6455 section 4.2.2.
		sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
		echo("websocket", buf, c, func() {})
	default:
		_ = rc.EnableFullDuplex() // HTTP/2 is
		w.WriteHeader(http.StatusOK)
		_ = rc.Flush()
		echo("http2", r.Body, w, func() { _ = rc.Flush() })
	}
}

// echo says that a connection is open with the first byte, and when it ended.
func echo(kind string, in io.Reader, out io.Writer, flush func()) {
	open := false
	for buf := make([]byte, 1024); ; {
		n, err := in.Read(buf)
		if n > 0 && !open {
			open = true
			say(word{Kind: kind, Open: true})
		}
		if n > 0 && err == nil {
			_, err = out.Write(buf[:n])
			flush()
		}
		if err != nil {
			if open {
				say(word{Kind: kind, Cut: time.Now()})
			}
			return
		}
	}
}

// callRole does what its input says, a word a line: hold opens one of each kind and
// watches it, try opens another and ends it.
func callRole(web, lines string) int {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		for _, kind := range kinds {
			c, err := talkTo(kind, web, lines)
			if err == nil {
				err = c.turn()
			}
			switch {
			case in.Text() == "try":
				say(word{Kind: kind, Tried: fmt.Sprint(err)})
				if c != nil {
					c.end()
				}
			case err != nil:
				say(word{Kind: kind, Tried: err.Error()})
			default:
				say(word{Kind: kind, Open: true})
				go func() {
					_, _ = c.in.ReadByte()
					say(word{Kind: kind, Cut: time.Now()})
					c.end()
				}()
			}
		}
	}
	return 0
}

// A talk is one open connection.
type talk struct {
	in  *bufio.Reader
	out io.Writer
	end func()
}

func talkTo(kind, web, lines string) (*talk, error) {
	if kind == "http2" {
		transport := &http.Transport{Protocols: new(http.Protocols)}
		transport.Protocols.SetUnencryptedHTTP2(true)
		r, w := io.Pipe()
		resp, err := (&http.Client{Transport: transport}).Post("http://"+web+"/hold", "text/plain", r)
		if err != nil {
			return nil, err
		}
		end := func() { w.Close(); resp.Body.Close(); transport.CloseIdleConnections() }
		if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
			end()
			return nil, fmt.Errorf("%s %s", resp.Proto, resp.Status)
		}
		return &talk{bufio.NewReader(resp.Body), w, end}, nil
	}
	addr := map[string]string{"websocket": web, "tcp": lines}[kind]
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	t := &talk{bufio.NewReader(c), c, func() { c.Close() }}
	if kind == "tcp" {
		return t, nil
	}
	fmt.Fprintf(c, "GET /hold HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", addr)
	resp, err := http.ReadResponse(t.in, nil)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("%s", resp.Status)
	}
	if err != nil {
		t.end()
		return nil, err
	}
	return t, nil
}

// turn sends a text frame of WebSocket, which is as good as any bytes, and wants it back.
func (t *talk) turn() error {
	frame := []byte{0x81, 0x85, 0, 0, 0, 0, 'h', 'e', 'l', 'l', 'o'}
	if _, err := t.out.Write(frame); err != nil {
		return err
	}
	got := make([]byte, len(frame))
	if _, err := io.ReadFull(t.in, got); err != nil {
		return err
	}
	if !bytes.Equal(got, frame) {
		return fmt.Errorf("got %q", got)
	}
	return nil
}

// A talker is a process in one of the two roles, inside a namespace.
type talker struct {
	t    *testing.T
	cmd  *exec.Cmd
	todo io.Writer

	mu    sync.Mutex // guards words
	words []word
}

func startTalker(t *testing.T, ns, role string) *talker {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	k := &talker{t: t, cmd: inside(ns, self)}
	k.cmd.Env = append(os.Environ(), "PARLEY_INTEROP_ROLE="+role)
	k.cmd.Stderr = os.Stderr
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if k.todo, err = k.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for in := bufio.NewScanner(out); in.Scan(); {
			var w word
			if err := json.Unmarshal(in.Bytes(), &w); err != nil {
				w.Tried = in.Text()
			}
			k.mu.Lock()
			k.words = append(k.words, w)
			k.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = k.cmd.Process.Signal(syscall.SIGKILL) // it may have ended
		<-read
		_ = k.cmd.Wait() // it was killed
	})
	return k
}

// do has it do what a word says.
func (k *talker) do(what string) {
	k.t.Helper()
	if _, err := io.WriteString(k.todo, what+"\n"); err != nil {
		k.t.Fatal(err)
	}
}

// take are the words since the last time that are wanted, one of each kind, within
// twenty seconds.
func (k *talker) take(what string, wanted func(word) bool) map[string]word {
	k.t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		found := map[string]word{}
		k.mu.Lock()
		for _, w := range k.words {
			if wanted(w) {
				found[w.Kind] = w
			}
		}
		k.mu.Unlock()
		if len(found) == len(kinds) {
			return found
		}
		if time.Since(began) > 20*time.Second {
			k.t.Fatalf("not in 20 s: %s. It said:\n%s", what, k.forget())
		}
	}
}

// forget makes what was said so far the past, and is that as text.
func (k *talker) forget() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var past strings.Builder
	for _, w := range k.words {
		fmt.Fprintf(&past, "%+v\n", w)
	}
	k.words = nil
	return past.String()
}

// try is what came of a new connection of each kind: "<nil>" of one that works.
func (k *talker) try() map[string]string {
	k.t.Helper()
	k.forget()
	k.do("try")
	came := map[string]string{}
	for kind, w := range k.take("all were tried", func(w word) bool { return w.Tried != "" }) {
		came[kind] = w.Tried
	}
	return came
}
