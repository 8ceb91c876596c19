// Command caller answers each request with the name of who made it.
package main

import (
	"fmt"
	"log"
	"net/http"

	"github.com/parleymesh/parley"
)

func main() {
	w := &parley.Workload{Allow: []string{"web"}}
	l, err := w.Listen("tcp", "127.0.0.1:9443")
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(l, w.Handler(http.HandlerFunc(hello))))
}

func hello(rw http.ResponseWriter, r *http.Request) {
	caller, _ := parley.CallerFrom(r.Context())
	if o := caller.Origin; o != nil { // the caller is a gateway, which let o in
		fmt.Fprintf(rw, "hello %s by %s\n", o.Name, caller.Service)
		return
	}
	fmt.Fprintf(rw, "hello %s\n", caller.Service)
}
