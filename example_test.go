package parley_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"slices"

	"github.com/parleymesh/parley"
)

// A service that web may call by HTTP.
func ExampleWorkload_Handler() {
	w := &parley.Workload{Allow: []string{"web"}}
	l, err := w.Listen("tcp", ":9443")
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(l, w.Handler(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		caller, _ := parley.CallerFrom(r.Context())
		fmt.Fprintf(rw, "hello %s\n", caller.Service)
	}))))
}

// A service with a protocol of its own.
func ExampleWorkload_Listen() {
	w := &parley.Workload{Allow: []string{"orders", "spiffe://partner.example/billing"}}
	l, err := w.Listen("tcp", ":6432")
	if err != nil {
		log.Fatal(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer c.Close()
			caller, _ := w.CallerOf(c)
			fmt.Fprintf(c, "hello %s\n", caller.ID)
		}()
	}
}

// A service behind a gateway: who called that.
func ExampleCallerFrom() {
	handler := func(rw http.ResponseWriter, r *http.Request) {
		caller, _ := parley.CallerFrom(r.Context())
		o := caller.Origin
		if o == nil || o.Token == nil || !slices.Contains(o.Token.Scopes, "orders.read") {
			http.Error(rw, "a token with orders.read is needed", http.StatusForbidden)
			return
		}
		fmt.Fprintf(rw, "hello %s of %s\n", o.Token.Subject, o.Token.Issuer)
	}
	w := &parley.Workload{Allow: []string{"gateway/edge"}}
	l, err := w.Listen("tcp", ":9443")
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(l, w.Handler(http.HandlerFunc(handler))))
}

// A caller of orders.
func ExampleWorkload_HTTPClient() {
	w := &parley.Workload{}
	defer w.Close()
	resp, err := w.HTTPClient("orders").Get("https://10.0.0.7:9443/orders/7")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", body)
}

// A caller of a database behind a TCP sidecar.
func ExampleWorkload_Dial() {
	w := &parley.Workload{}
	defer w.Close()
	c, err := w.Dial(context.Background(), "db", "10.0.0.8:6432")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "ping\n")
}
