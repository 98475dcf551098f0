// Live updates; see events.go.
"use strict";
