import re,sys,pathlib
for name in sys.argv[1:]:
    f=pathlib.Path(name); s=f.read_text()
    s=re.sub(r'^#!\[allow\(clippy::unwrap_used(, clippy::print_stdout)?\)\]\n\n?','',s,flags=re.M,count=1)
    def fix(m):
        path,attrs,mod=m.groups()
        if 'examples' in path: return f'#[path = "../{path}"]{attrs}mod {mod};'
        if 'expiry' in path: stem='rows'
        else: stem=pathlib.Path(path).parent.name if path.endswith('mod.rs') else pathlib.Path(path).stem
        return f'use crate::{stem};' if stem==mod else f'use crate::{stem} as {mod};'
    s=re.sub(r'#\[path = "([^"]+)"\](\n(?:#\[[^\n]*\]\n)*)mod (\w+);',fix,s)
    s=re.sub(r'^mod support;\n','use crate::support;\n',s,flags=re.M)
    s=s.replace('include_str!("../','include_str!("../../').replace('include_str!("support/','include_str!("../support/')
    for m in re.findall(r'^use crate::(\w+)(?: as (\w+))?;\n',s,flags=re.M):
        mod,alias=m[0],m[1] or m[0]
        if mod not in ('support','store','claimed','rows'): continue
        line=f'use crate::{mod} as {alias};\n' if m[1] else f'use crate::{mod};\n'
        s2=re.sub(rf'^(\s*)use {alias}::',rf'\1use crate::{mod}::',s,flags=re.M)
        rest=re.sub(r'crate::\w+::','',s2)
        if not re.search(rf'\b{alias}::',rest):
            s2=s2.replace(line+'\n','',1) if (line+'\n') in s2 else s2.replace(line,'',1)
        elif re.search(rf'^use crate::{mod}::\{{',s2,flags=re.M) and not m[1]:
            s2=re.sub(rf'^use crate::{mod};\n\n?','',s2,count=1,flags=re.M)
            s2=re.sub(rf'^use crate::{mod}::\{{',f'use crate::{mod}::{{self, ',s2,count=1,flags=re.M)
        s=s2
    f.write_text(s)
